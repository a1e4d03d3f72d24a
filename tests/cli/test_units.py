import pytest

from deltastore.cli import units


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (1_234_567, "1.23 MB"),
        (12_345_678, "12.3 MB"),
        (123_456_789, "123 MB"),
        (999_600_000, "1.00 GB"),
        (2_203_000_000, "2.20 GB"),
        (5 * 10**18, "5000 PB"),
    ],
)
def test_sizes_have_three_digits(n_bytes: int, text: str) -> None:
    assert units.size(n_bytes) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.004, "0.00 s"),
        (9.994, "9.99 s"),
        (9.996, "10.0 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min 00 s"),
        (185, "3 min 05 s"),
        (3599.6, "1 h 00 min"),
        (7800, "2 h 10 min"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert units.duration(seconds) == text


def test_counts_agree_with_their_noun() -> None:
    assert units.count(1, "tensor") == "1 tensor"
    assert units.count(1024, "tensor") == "1,024 tensors"
    assert units.count(0, "--scale", "--scale") == "0 --scale"


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [
        ("5GB", 5 * 10**9),
        ("5gb", 5 * 10**9),
        (" 1.5 MiB ", 3 * 2**19),
        ("1000", 1000),
        ("7 B", 7),
    ],
)
def test_sizes_are_parsed(text: str, n_bytes: int) -> None:
    assert units.parse_size(text) == n_bytes


@pytest.mark.parametrize("text", ["", "GB", "5 apples", "-5GB", "0", "0.1B", "1e9", "٣GB"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match=r"size|less than"):
        units.parse_size(text)
