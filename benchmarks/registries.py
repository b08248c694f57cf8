"""Every name the suite knows: one line here, or one entry point in another package, makes a thing runnable.

Nothing is imported until it is used, so `bella list` is instant.
"""

from __future__ import annotations

from bella.registry import Registry

METHODS = Registry(
    "method",
    "bella.methods",
    {
        "single": ("benchmarks.methods:SINGLE", "one full-rank network (a MAP estimate)"),
        "ensemble": ("benchmarks.methods:ENSEMBLE", "full-rank particles, independent: a deep ensemble"),
        "svgd": ("benchmarks.methods:SVGD", "full-rank particles moved by SVGD"),
        "bella-single": ("benchmarks.methods:BELLA_SINGLE", "one low-rank particle"),
        "bella-ensemble": ("benchmarks.methods:BELLA_ENSEMBLE", "low-rank particles over one theta_0, independent"),
        "bella-svgd": ("benchmarks.methods:BELLA_SVGD", "low-rank particles over one theta_0, moved by SVGD"),
        "bella-svgd-released": (
            "benchmarks.methods:BELLA_SVGD_RELEASED",
            "low-rank particles moved by the rule of the paper's released code, which is not SVGD",
        ),
        "bella-svgd-products": ("benchmarks.methods:BELLA_SVGD_PRODUCTS", "bella-svgd with its kernel on the products B A"),
        "bella-svgd-layerwise": ("benchmarks.methods:BELLA_SVGD_LAYERWISE", "bella-svgd with a kernel for every layer"),
        "bella-svgd-annealed": ("benchmarks.methods:BELLA_SVGD_ANNEALED", "bella-svgd with an annealed driving force"),
        "bella-function-repulsion": (
            "benchmarks.methods:BELLA_FUNCTION_REPULSION",
            "low-rank particles that repel each other in what they predict",
        ),
        "bella-variational": ("benchmarks.methods:BELLA_VARIATIONAL", "draws of a mean-field Gaussian over the factors (BLoB)"),
        "bella-laplace": ("benchmarks.methods:BELLA_LAPLACE", "one low-rank particle with Gaussian factors, linearised (Laplace)"),
        "bella-mc-dropout": ("benchmarks.methods:BELLA_DROPOUT", "one low-rank particle, thinned at random"),
        "bella-swag": ("benchmarks.methods:BELLA_SWAG", "draws of a Gaussian along the path of one low-rank particle"),
        "mc-dropout": ("benchmarks.methods:DROPOUT", "one full-rank network, thinned at random"),
        "laplace-last-layer": ("benchmarks.methods:LAST_LAYER_LAPLACE", "one full-rank network with a Gaussian head (Laplace)"),
        "swag": ("benchmarks.methods:SWAG", "draws of a Gaussian along the path of one full-rank network"),
        "multi-swag": ("benchmarks.methods:MULTI_SWAG", "draws of Gaussians along the paths of three full-rank networks"),
        "batch-ensemble": ("benchmarks.methods:BATCH_ENSEMBLE", "one full-rank network with a rank-1 factor for every member"),
    },
)

PROBLEMS = Registry(
    "problem",
    "bella.problems",
    {
        "digits": ("benchmarks.problems.digits:Digits", "scikit-learn's 8x8 digits, classes 0-7 (embedded)"),
        "random-images": ("benchmarks.problems.random_images:RandomImages", "random pixels and labels, for costs (embedded)"),
        "imagefolder": ("benchmarks.problems.imagefolder:ImageFolder", "any folder split/class/image (set data=FOLDER)"),
        "imagefolder-development": (
            "benchmarks.problems.imagefolder:DevelopmentFolder",
            "its unused training images as test: to choose settings by",
        ),
        "domainfolder": ("benchmarks.problems.domainfolder:DomainFolder", "any folder domain/class/image, one domain left out"),
        "cifar10": ("benchmarks.problems.cifar:Cifar10", "CIFAR-10, 50,000 photos in 10 classes (bella download)"),
        "cifar100": ("benchmarks.problems.cifar:Cifar100", "CIFAR-100, 50,000 photos in 100 classes (bella download)"),
        "stl10": ("benchmarks.problems.stl10:Stl10", "STL-10, 5,000 photos in 10 classes, 96 px (bella download)"),
        "svhn": ("benchmarks.problems.svhn:Svhn", "SVHN, 73,257 digits of house numbers (bella download)"),
        "imagenet": ("benchmarks.problems.imagenet:ImageNet", "ImageNet, 1000 classes; further sets V2, R, A (set data=FOLDER)"),
        "camelyon17": ("benchmarks.problems.camelyon17:Camelyon17", "CAMELYON17-WILDS, tumour in patches (bella download)"),
        "domainnet": ("benchmarks.problems.domainnet:DomainNet", "DomainNet, 345 classes in six domains (bella download)"),
        "vqav2": ("benchmarks.problems.vqav2:VqaV2", "VQAv2, questions about COCO photos, ten human answers each (bella download)"),
        "easy-vqa": ("benchmarks.problems.easy_vqa:EasyVqa", "questions about coloured shapes, 13 answers (embedded)"),
    },
)

TASKS = Registry(
    "task",
    "bella.tasks",
    {
        "classification": (
            "benchmarks.tasks.classification:Classification",
            "accuracy, NLL, Brier, ECE, temperature scaling, selective prediction, uncertainty, diversity on the test split",
        ),
        "ood": ("benchmarks.tasks.ood:OutOfDistribution", "telling the test split from near and far out-of-distribution images"),
        "vqa": ("benchmarks.tasks.vqa:Vqa", "accuracy by type of question, calibration, selective answering, human agreement"),
        "corruption": ("benchmarks.tasks.corruption:Corruption", "accuracy, NLL, ECE over corruption types and severities"),
        "domain": ("benchmarks.tasks.domain:Domain", "accuracy on every domain, their mean and the worst"),
        "wilds": ("benchmarks.tasks.wilds:Wilds", "wilds' own evaluation: accuracy, also of the worst group"),
        "adversarial": ("benchmarks.tasks.adversarial:Adversarial", "FGSM, PGD, AutoAttack on the averaged prediction"),
    },
)

BACKBONES = Registry(
    "backbone",
    "bella.backbones",
    {
        "packaged": ("benchmarks.image_backbones:Packaged", "packaged:efficientnet_lite0, ImageNet weights from the package index"),
        "timm": ("benchmarks.image_backbones:Timm", "timm:MODEL[.TAG], any timm model"),
        "open_clip": ("benchmarks.image_backbones:OpenClip", "open_clip:MODEL/TAG, the image tower of any open_clip model"),
        "transformers": ("benchmarks.llava:Transformers", "transformers:llava-hf/llava-1.5-7b-hf, or a folder with a LLaVA"),
    },
)

SUITES = Registry(
    "suite",
    "bella.suites",
    {
        "quick": (
            "benchmarks.suites:QUICK",
            "the four methods and single networks, 3 particles, on the embedded problems; minutes on two cores",
        ),
        "adversarial": (
            "benchmarks.suites:ADVERSARIAL",
            "FGSM, PGD and AutoAttack on digits, at four epsilons; slow without a GPU",
        ),
        "smoke": ("benchmarks.suites:SMOKE", "the same on a few digits with a tiny random network; seconds, for tests"),
        "released": (
            "benchmarks.suites:RELEASED",
            "the released code's rule beside SVGD and the ensemble on digits, three seeds; minutes on two cores",
        ),
        "rivals": ("benchmarks.suites:RIVALS", "Bella's variants and its rivals on the embedded problems"),
        "cifar10": (
            "benchmarks.suites:CIFAR10",
            "20 methods on CIFAR-10 as JPEG folders (set data=FOLDER), EfficientNet-Lite0 at 64 px; many hours on two cores",
        ),
        "cifar10-128": ("benchmarks.suites:CIFAR10_128", "the four methods at 128 px, which fit the ImageNet weights better"),
        "cifar10-near": ("benchmarks.suites:CIFAR10_NEAR", "the same with two classes left out, which have to be told"),
        "cifar10-tuning": ("benchmarks.suites:CIFAR10_TUNING", "how its learning rates, epochs, layers were chosen"),
        "cifar10-development": (
            "benchmarks.suites:CIFAR10_DEVELOPMENT",
            "how ensembles of low-rank particles were brought near full-rank ones, without a look at test images",
        ),
        "cifar10-early": (
            "benchmarks.suites:CIFAR10_EARLY",
            "a network from random weights, stopped early: a theta_0 of little quality",
        ),
        "cifar10-theta0": ("benchmarks.suites:CIFAR10_THETA0", "low-rank and full-rank ensembles on the theta_0 of cifar10-early"),
        "cifar10-sweeps": ("benchmarks.suites:CIFAR10_SWEEPS", "its rank, particles, repulsion, targets, theta_0, data size"),
        "paper-cifar": (
            "benchmarks.suites:PAPER_CIFAR",
            "CIFAR-10, CIFAR-100, STL-10 with CLIP ViT-B/32: corruption, OOD, attacks (downloads, GPU)",
        ),
        "paper-camelyon": (
            "benchmarks.suites:PAPER_CAMELYON",
            "CAMELYON17 with the hospitals of WILDS, CLIP ViT-B/32 (download, GPU)",
        ),
        "paper-domainnet": (
            "benchmarks.suites:PAPER_DOMAINNET",
            "DomainNet, real photographs to six domains, CLIP ViT-B/32 (download, GPU)",
        ),
        "paper-imagenet": ("benchmarks.suites:PAPER_IMAGENET", "ImageNet and its shifted test sets, CLIP ViT-B/32 (download, GPU)"),
        "paper-vqa": ("benchmarks.suites:PAPER_VQA", "VQAv2 with LLaVA-1.5-7B in bf16 (download, GPU)"),
        "paper-costs": (
            "benchmarks.suites:PAPER_COSTS",
            "what methods cost at paper scale: `bella costs paper-costs`, random weights and pixels",
        ),
        "sweep-rank": ("benchmarks.suites:SWEEP_RANK", "rank 1 to 32 on CAMELYON17, or elsewhere with --problems"),
        "sweep-particles": ("benchmarks.suites:SWEEP_PARTICLES", "1 to 20 particles on CAMELYON17, or elsewhere with --problems"),
        "sweep-repulsion": (
            "benchmarks.suites:SWEEP_REPULSION",
            "repulsion over six decades on CAMELYON17, or elsewhere with --problems",
        ),
    },
)

ALL = {"methods": METHODS, "tasks": TASKS, "problems": PROBLEMS, "backbones": BACKBONES, "suites": SUITES}
