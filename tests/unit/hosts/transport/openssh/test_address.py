"""openssh/address.py: an address is read as ssh writes it, and anything else refused."""

from __future__ import annotations

import pytest

from kernelbridge.hosts.transport.openssh.address import Address, parse_address


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lab", Address(name="lab")),
        ("ada@lab", Address(name="lab", user="ada")),
        ("ada@lab.example:2222", Address(name="lab.example", user="ada", port=2222)),
        ("lab:22", Address(name="lab", port=22)),
        ("ada@realm@lab", Address(name="lab", user="ada@realm")),
        ("[::1]:2222", Address(name="::1", port=2222)),
        ("ada@[fe80::1]", Address(name="fe80::1", user="ada")),
        ("fe80::1", Address(name="fe80::1")),
    ],
)
def test_an_address_is_read_as_ssh_writes_it(text: str, expected: Address) -> None:
    assert parse_address(text) == expected


@pytest.mark.parametrize("text", ["", "ada@", "lab:ssh", "lab:0", "lab:70000", "[::1"])
def test_an_address_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="port"):
        parse_address(text)
