"""Descriptions: each says how a dataset is laid out, on what terms it is, and where."""

from __future__ import annotations

import pytest

from skmkd.datasets import _descriptions


@pytest.mark.parametrize(
    ("name", "licence", "source"),
    [
        ("MVTEC_AD", "CC BY-NC-SA 4.0", "https://www.mvtec.com/"),
        ("VISA", "CC BY 4.0", "https://github.com/amazon-science/spot-diff"),
        ("MPDD", "states no licence", "https://github.com/stepanje/MPDD"),
        ("BTAD", "CC BY-SA", "http://avires.dimi.uniud.it/"),
        ("MVTEC_LOCO", "CC BY-NC-SA 4.0", "https://www.mvtec.com/"),
        ("MVTEC_AD_2", "CC BY-NC-SA 4.0", "https://www.mvtec.com/"),
        ("MVTEC_3D_AD", "CC BY-NC-SA 4.0", "https://www.mvtec.com/"),
        ("KOLEKTOR_SDD", "CC BY-NC-SA 4.0", "https://www.vicos.si/"),
        ("KOLEKTOR_SDD2", "CC BY-NC-SA 4.0", "https://www.vicos.si/"),
    ],
)
def test_descriptions_name_layout_terms_and_source(name, licence, source):
    text = getattr(_descriptions, name)
    parts = [text.index(f"\n{heading}\n---") for heading in ("Layout", "Terms", "Source")]
    assert parts == sorted(parts)
    assert "root/" in text[: parts[1]]
    assert licence in text[parts[1] : parts[2]]
    assert source in text[parts[2] :]
    assert max(map(len, text.splitlines())) <= 100
