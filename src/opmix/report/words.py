"""Words of the reports, one click away for somebody who has not read the method's paper."""

from __future__ import annotations

from opmix.report.html import Html, el, folded, join

_WORDS = {
    "mixture": "Shares of the training tokens, one for each domain; they add up to 100 %.",
    "eval set": "Held-out text of a domain or target, never trained on; a loss is always of one.",
    "nats per token": "The loss: mean negative log probability of the next token. 0.01 less is a perplexity 1 % lower.",
    "probe": "A short training of the model (small adapters beside its weights) on one domain, or on a mixture.",
    "proxy": "The model with the probes averaged in some proportion: it stands for a training on that mixture.",
    "law": "A curve fitted to the losses of the proxies; it foretells the loss of mixtures that nobody tried.",
    "90 % interval": "Where the value lies in nine of ten cases, for the noise that this run has seen.",
    "stage": "The training that the mixture is for, of a budget of tokens fixed beforehand.",
    "gain": "How much lower the mean loss will be at the stage's end than with the mixture in use; more is better.",
    "forgetting": "How much the loss on what a model knew before has risen over a stage.",
}


def ending(units: str) -> Html:
    """A page's last lines: its units, and the words, folded."""
    pairs = (part for name, meaning in _WORDS.items() for part in (el("dt", name), el("dd", meaning)))
    list_ = folded("Words on this page", el("dl", join(pairs), class_="words"))
    return join([el("p", f"{units} Shares are of training tokens."), list_])
