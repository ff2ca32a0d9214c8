"""CPL's thresholds, decided."""

from dataclasses import replace

from raydapt.data.named_sets import default_thresholds, named_set
from raydapt.data.splits import seen_unseen_classes
from raydapt.methods.cpl.settings import CplSettings
from raydapt.settings.config import Config


def resolve_cpl(config: Config, n_classes: int) -> CplSettings:
    """CPL's published thresholds of the named set, else those that most of its sets share.

    In TRZSL beta = 1 - m / C over the C unseen classes, as in the public code.
    """
    cpl, modality = config.of(CplSettings), "visual" if config.model.prompt in ("visual", "both") else "text"
    known = named_set(config.data.source)
    thresholds = (known.thresholds.get(modality) if known else None) or default_thresholds(n_classes)
    alpha = thresholds.alpha if cpl.alpha == "auto" else cpl.alpha
    if cpl.beta != "auto":
        beta = cpl.beta
    elif config.data.paradigm == "trzsl":
        _, unseen = seen_unseen_classes(n_classes, config.data.split_seed, config.data.seen_share)
        beta = max(0.0, 1.0 - thresholds.trzsl_m / len(unseen))
    else:
        beta = thresholds.beta
    return replace(cpl, alpha=alpha, beta=beta)
