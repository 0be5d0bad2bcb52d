"""What is measured at: sizes, and those that are measured by default."""

from typing import NamedTuple


class Size(NamedTuple):
    """Rows and columns of the embeddings, and the classes of a loss that has weights of them."""

    n: int
    d: int
    classes: int = 0

    def __str__(self) -> str:
        return "x".join(map(str, self if self.classes else self[:2]))

    @classmethod
    def parse(cls, text: str) -> "Size":
        """Reads "512x128" and "1024x512x100000"; anything else is a ValueError."""
        numbers = [int(word) for word in text.lower().split("x")]
        if len(numbers) not in (2, 3) or min(numbers) < 1:
            raise ValueError(text)
        return cls(*numbers)


class Sizes(NamedTuple):
    """What is measured where no sizes are given, with --quick, and besides with --large."""

    usual: str
    quick: str
    large: str


LEAST_ROWS = 8  # of a pair loss: those of two classes

# By type of device.
PAIR_SIZES = {
    "cpu": Sizes("128x128,512x128,8192x128,8192x512", "128x128,512x128,2048x128", "65536x128"),
    "cuda": Sizes(
        "128x128,1024x128,8192x128,32768x128,32768x512",
        "128x128,1024x128,8192x128",
        "1048576x128",
    ),
}
CLASS_SIZES = {
    "cpu": Sizes(
        "128x512x100,75x512x11318,1024x512x100000",
        "128x512x100,75x512x11318",
        "1024x512x1000000",
    ),
    "cuda": Sizes(
        "128x512x100,75x512x11318,4096x512x100000,4096x512x1000000",
        "128x512x100,75x512x11318",
        "4096x512x4000000",
    ),
}
