"""A policy's promise in words: what a user signs."""

from __future__ import annotations

from segpipe.confidence.policy import BadFractionPromise, MeanLossPromise, Policy


def promise(policy: Policy) -> str:
    """The sentence a user signs; without a threshold, what would be needed for one."""
    grouped = policy.n_calibration < policy.n_images
    weights = ", each group of images counting once" if grouped else ""
    target = f"{_wanted(policy.promised)}, with {_percent(policy.confidence)} confidence{weights}"
    counted = _counted(policy.n_calibration, grouped, "calibration")
    if policy.threshold is not None:
        found = _found(policy.promised)
        return f"{target} (accepted {policy.accepted} of {counted}, {found})"
    return f"nothing is accepted: {counted} cannot prove that {target}; {_remedy(policy)}"


def _wanted(promised: BadFractionPromise | MeanLossPromise) -> str:
    match promised:
        case BadFractionPromise():
            return (
                f"at most {_percent(promised.max_bad_fraction)} of accepted masks have IoU below "
                f"{_iou(promised.min_iou)}"
            )
        case MeanLossPromise():
            return f"accepted masks have a mean IoU of at least {_iou(1 - promised.max_mean_loss)}"


def _found(promised: BadFractionPromise | MeanLossPromise) -> str:
    match promised:
        case BadFractionPromise():
            return f"{promised.bad} bad"
        case MeanLossPromise():
            assert promised.mean_loss is not None  # a threshold accepts something
            return f"mean IoU {1 - promised.mean_loss:.2f}"


def _remedy(policy: Policy) -> str:
    if policy.labelled_images_needed is None:
        return f"more labels are not expected to help: improve the model, {_easier(policy.promised)}"
    more, grouped = policy.labelled_images_needed, policy.n_calibration < policy.n_images
    return f"about {_counted(more, grouped, 'labelled', 'more ')} {'is' if more == 1 else 'are'} needed"


def _counted(count: int, grouped: bool, kind: str, more: str = "") -> str:
    """So many images of a kind, or groups of such images."""
    plural = "" if count == 1 else "s"
    return (
        f"{count} {more}group{plural} of {kind} images" if grouped else f"{count} {more}{kind} image{plural}"
    )


def _easier(promised: BadFractionPromise | MeanLossPromise) -> str:
    match promised:
        case BadFractionPromise():
            return "lower min IoU or raise max bad fraction"
        case MeanLossPromise():
            return "raise max mean loss"


def _percent(share: float) -> str:
    return f"{share * 100:.10g}%"


def _iou(value: float) -> str:
    return max(f"{value:.2f}", f"{value:.10g}", key=len)
