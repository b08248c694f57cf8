"""Visual question answering: accuracy by type of question, calibration, and whether uncertainty tells wrong answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from benchmarks.task import Column, Posterior, Task

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from benchmarks.figures import Rows


class Vqa(Task):
    """Of a test split with `groups` (types of question), and with `human_answers` where several people answered."""

    tables: ClassVar[dict[str, tuple[Column, ...]]] = {
        "Visual question answering": (
            Column("accuracy", "Acc. (%)", "higher", 100, 1),
            Column("type/shape/accuracy", "shape", "higher", 100, 1),
            Column("type/colour/accuracy", "colour", "higher", 100, 1),
            Column("type/yes-no/accuracy", "yes-no", "higher", 100, 1),
            Column("type/number/accuracy", "number", "higher", 100, 1),
            Column("type/other/accuracy", "other", "higher", 100, 1),
            Column("human/soft_accuracy", "VQA acc. (%)", "higher", 100, 1),
            Column("nll", "NLL", "lower"),
            Column("ece", "ECE (%)", "lower", 100, 1),
            Column("correctness/auroc/entropy", "AUROC correct", "higher"),
            Column("selective/aurc", "AURC (%)", "lower", 100, 2),
            Column("selective/accuracy@80", "Acc. at 80 % (%)", "higher", 100, 1),
            Column("human/rank_correlation/entropy", "Rank corr., humans", "higher"),
        )
    }
    caption = (
        "Accuracy overall and by type of question, in per cent; NLL in nats; ECE with 15 equal bins, L1 norm; AUROC of telling "
        "right from wrong answers by predictive entropy; AURC: mean error rate over coverages, most confident first; with several "
        "human answers a question, VQA accuracy is min(1, agreeing people / 3) over all but one of them, and rank correlation is "
        "Spearman's, of predictive entropy with the entropy of the human answers"
    )

    def evaluate(self, posterior: Posterior, options: Any) -> dict[str, float | None]:
        """Metrics, from the stored logits of the test split and the kinds of its questions."""
        import torch

        from bella import predictive
        from benchmarks import metrics

        split: Any = posterior.data().test
        test = posterior.predictions("test")
        logits, targets = test.logits.double(), test.targets
        averaged = predictive.log_predictive(logits, posterior.average)
        entropy = predictive.entropy(averaged)
        several = logits.shape[0] > 1
        information = predictive.epistemic_uncertainty(logits)
        right = averaged.argmax(-1) == targets
        found = {
            "accuracy": metrics.accuracy(averaged, targets),
            "nll": metrics.nll(averaged, targets),
            "ece": metrics.expected_calibration_error(averaged, targets),
            "correctness/auroc/entropy": metrics.auroc(-entropy, right),
            "correctness/auroc/mutual_information": metrics.auroc(-information, right) if several else None,
            **metrics.selective(averaged, targets),
        }
        groups: list[str] = getattr(split, "groups", [])
        for group in dict.fromkeys(groups):
            own = torch.tensor([g == group for g in groups])
            found[f"type/{group}/accuracy"] = metrics.accuracy(averaged[own], targets[own])
        humans: Tensor | None = getattr(split, "human_answers", None)
        if humans is not None:
            found["human/soft_accuracy"] = metrics.mean(soft_accuracy(averaged.argmax(-1), humans))
            found["human/rank_correlation/entropy"] = metrics.rank_correlation(entropy, human_entropy(humans))
        return found

    def figures(self, rows: Rows) -> dict[str, Figure]:
        """Reliability, risk-coverage and parameters against accuracy of the answers."""
        from benchmarks import classification_figures as draw

        drawn = {
            "vqa-reliability": draw.reliability(rows),
            "vqa-risk-coverage": draw.risk_coverage(rows),
            "vqa-parameters": draw.parameters(rows, "vqa"),
        }
        return {name: figure for name, figure in drawn.items() if figure is not None}


def soft_accuracy(answers: Tensor, humans: Tensor) -> Tensor:
    """VQA accuracy (Antol et al. 2015, arXiv 1505.00468), (N,): the mean over people left out of min(1, others who agree / 3).

    Args:
        answers: (N,), class indices.
        humans: (N, H), class indices of H people's answers, below 0 for one that is no class.
    """
    agree = (humans == answers[:, None]).double()
    others = agree.sum(1, keepdim=True) - agree
    return (others / 3).clamp(max=1).mean(1)


def human_entropy(humans: Tensor) -> Tensor:
    """Entropy in nats of each question's human answers, (N, H) -> (N,): how much people disagree."""
    import torch

    same = (humans[:, :, None] == humans[:, None, :]).double().mean(2)  # each person's answer's share
    return -torch.log(same).mean(1)
