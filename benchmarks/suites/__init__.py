"""The suites that ship: YAML files beside this one. A registered suite is the path of such a file."""

from pathlib import Path

QUICK = Path(__file__).with_name("quick.yaml")
RELEASED = Path(__file__).with_name("released.yaml")
SMOKE = Path(__file__).with_name("smoke.yaml")
ADVERSARIAL = Path(__file__).with_name("adversarial.yaml")
PAPER_CIFAR = Path(__file__).with_name("paper-cifar.yaml")
PAPER_CAMELYON = Path(__file__).with_name("paper-camelyon.yaml")
PAPER_DOMAINNET = Path(__file__).with_name("paper-domainnet.yaml")
PAPER_IMAGENET = Path(__file__).with_name("paper-imagenet.yaml")
PAPER_VQA = Path(__file__).with_name("paper-vqa.yaml")
PAPER_COSTS = Path(__file__).with_name("paper-costs.yaml")
SWEEP_RANK = Path(__file__).with_name("sweep-rank.yaml")
SWEEP_PARTICLES = Path(__file__).with_name("sweep-particles.yaml")
SWEEP_REPULSION = Path(__file__).with_name("sweep-repulsion.yaml")
RIVALS = Path(__file__).with_name("rivals.yaml")
CIFAR10 = Path(__file__).with_name("cifar10.yaml")
CIFAR10_128 = Path(__file__).with_name("cifar10-128.yaml")
CIFAR10_NEAR = Path(__file__).with_name("cifar10-near.yaml")
CIFAR10_TUNING = Path(__file__).with_name("cifar10-tuning.yaml")
CIFAR10_DEVELOPMENT = Path(__file__).with_name("cifar10-development.yaml")
CIFAR10_SWEEPS = Path(__file__).with_name("cifar10-sweeps.yaml")
