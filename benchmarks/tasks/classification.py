"""Classification: how good, how calibrated, how diverse the averaged prediction on the test split is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from benchmarks.task import Column, Posterior, Task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from benchmarks.figures import Rows


class Classification(Task):
    """Accuracy, NLL, Brier, ECE of the averaged prediction, also after temperature scaling; uncertainty; diversity."""

    revision = 3

    tables: ClassVar[dict[str, tuple[Column, ...]]] = {
        "Classification": (
            Column("accuracy", "Acc. (%)", "higher", 100, 1),
            Column("nll", "NLL", "lower"),
            Column("brier", "Brier", "lower"),
            Column("ece", "ECE (%)", "lower", 100, 1),
            Column("tempered/nll", "NLL (T)", "lower"),
            Column("tempered/ece", "ECE (T, %)", "lower", 100, 1),
            Column("misclassification/auroc/entropy", "AUROC miscl.", "higher"),
        ),
        "Validation": (
            Column("validation/accuracy", "Acc. (%)", "higher", 100, 1),
            Column("validation/nll", "NLL", "lower"),
        ),
        "Selective prediction": (
            Column("selective/aurc", "AURC (%)", "lower", 100, 2),
            Column("selective/accuracy@80", "Acc. at 80 % (%)", "higher", 100, 1),
            Column("selective/accuracy@90", "at 90 %", "higher", 100, 1),
            Column("selective/accuracy@95", "at 95 %", "higher", 100, 1),
        ),
        "Uncertainty and diversity": (
            Column("single_particle_accuracy", "Acc. of one (%)", "higher", 100, 1),
            Column("disagreement", "Disagreement (%)", None, 100, 1),
            Column("uncertainty/total", "Entropy"),
            Column("uncertainty/expected", "Exp. entropy"),
            Column("uncertainty/mutual_information", "Mutual inf.", None, 1, 4),
            Column("diversity/weights", "Weight dist."),
            Column("diversity/products", "Product dist."),
            Column("diversity/functions", "Function dist.", None, 1, 4),
            Column("temperature", "T", None, 1, 2),
        ),
    }
    caption = (
        "NLL in nats; ECE with 15 equal bins, L1 norm, of the averaged prediction; (T): after temperature scaling, one T a run "
        "fitted by validation NLL; AUROC of misclassification detection by predictive entropy; AURC: mean error rate over "
        "coverages, most confident examples first; entropies and mutual information "
        "in nats; distances are means over pairs of particles (weights and products Euclidean, functions total variation)"
    )

    def evaluate(self, posterior: Posterior, options: Any) -> dict[str, float | None]:
        """All metrics, from the stored logits of the validation and test splits and the stored distances of the particles."""
        from bella import diversity, predictive
        from benchmarks import metrics

        validation, test = posterior.predictions("validation"), posterior.predictions("test")
        logits, targets = test.logits.double(), test.targets
        averaged = predictive.log_predictive(logits, posterior.average)
        held_out = predictive.log_predictive(validation.logits.double(), posterior.average)
        temperature = predictive.fit_temperature(held_out, validation.targets)
        tempered = predictive.temper(averaged, temperature)
        wrong = averaged.argmax(-1) != targets
        entropy = predictive.entropy(averaged)
        information = predictive.epistemic_uncertainty(logits)
        distances = posterior.distances()
        several = logits.shape[0] > 1
        return {
            "accuracy": metrics.accuracy(averaged, targets),
            "nll": metrics.nll(averaged, targets),
            "brier": metrics.brier(averaged, targets),
            "ece": metrics.expected_calibration_error(averaged, targets),
            "temperature": temperature,
            "validation/accuracy": metrics.accuracy(held_out, validation.targets),
            "validation/nll": metrics.nll(held_out, validation.targets),
            "tempered/nll": metrics.nll(tempered, targets),
            "tempered/ece": metrics.expected_calibration_error(tempered, targets),
            **metrics.selective(averaged, targets),
            "misclassification/auroc/entropy": metrics.auroc(entropy, wrong),
            "misclassification/auroc/mutual_information": metrics.auroc(information, wrong) if several else None,
            "single_particle_accuracy": metrics.mean((logits.argmax(-1) == targets).double()),
            "disagreement": diversity.mean_off_diagonal(diversity.disagreement(logits)),
            "uncertainty/total": metrics.mean(predictive.total_uncertainty(logits)),
            "uncertainty/expected": metrics.mean(predictive.aleatoric_uncertainty(logits)),
            "uncertainty/mutual_information": metrics.mean(information),
            "diversity/weights": diversity.mean_off_diagonal(distances["weights"]),
            "diversity/products": diversity.mean_off_diagonal(distances["products"]),
            "diversity/functions": diversity.mean_off_diagonal(diversity.function_distances(logits)),
        }

    def figures(self, rows: Rows) -> dict[str, Figure]:
        """Reliability, risk-coverage, parameters against accuracy, and how particles differ."""
        from benchmarks import classification_figures as draw

        drawn = {
            "reliability": draw.reliability(rows),
            "risk-coverage": draw.risk_coverage(rows),
            "parameters": draw.parameters(rows, "classification"),
            "distances": draw.distances(rows),
            "disagreement": draw.disagreement(rows),
        }
        return {name: figure for name, figure in drawn.items() if figure is not None}
