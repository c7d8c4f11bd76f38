"""The section of `opmix verify`: escaped, complete, and absent where nothing was verified."""

import pytest

from opmix.errors import StoreError
from opmix.report import write_report
from opmix.report.verified import verified
from opmix.results.verification import MeasuredMixture, VerificationFile, VerifiedPoint

POINT = VerifiedPoint(
    name="proposal",
    mixture={"a": 0.5, "<b>": 0.5},
    direct={"a": 3.0, "<b>": 4.0},
    proxy={"a": 2.9, "<b>": 4.1},
    law={"a": 3.0, "<b>": 4.0},
    standard_error={"a": 0.01},
    kl={"a": 0.02, "<b>": 0.03},
)


def test_differences_and_agreement_are_shown_and_names_escaped():
    measured = (
        MeasuredMixture(name="proposal", direct=3.5, law=3.4),
        MeasuredMixture(name="probe <old>", direct=3.4, law=3.6),
    )
    made = VerificationFile(
        points=(POINT, POINT),
        measured=measured,
        sentence="It <matters>.",
        matters=True,
        refinement={"reason": "settled", "mixture": {"a": 1.0}},
    )
    text = verified(made)
    assert text is not None
    assert "<b>" not in text.replace("<b>Directly", "")
    assert "+0.1000" in text
    assert "0.0200" in text
    assert "probe &lt;old&gt; &lt; proposal" in text
    assert "settled." in text
    assert "It &lt;matters&gt;." in text


def test_nothing_verified_is_nothing_shown():
    assert verified(VerificationFile(points=())) is None


def test_the_section_is_in_the_page(edited):
    point = {"name": "proposal", "direct": {"a": 3.0}, "proxy": {"a": 2.9}, "standard_error": {"a": None}}
    content = {"points": [point], "sentence": "Fine.", "schema": 1, "flops": 1.0}
    text = write_report(edited(lambda document: None, verification=content)).read_text()
    assert 'id="verified"' in text
    assert 'href="#verified"' in text
    with pytest.raises(StoreError, match=r"verification\.json"):
        write_report(edited(lambda document: None, verification={"points": [{"direct": 3}]}))
