"""Readers of image folders as their authors lay them out, one module each."""
