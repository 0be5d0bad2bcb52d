from dmlfast.errors import unknown_name


def test_of_very_many_names_a_few_are_listed():
    message = str(unknown_name("class", "cat", [f"n{number:05d}" for number in range(2000)]))
    assert message.startswith("unknown class 'cat' (known: n00000, n00001, ")
    assert message.endswith(", n00028, n00029 and 1,970 more)")
