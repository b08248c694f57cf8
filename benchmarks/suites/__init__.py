"""The suites that ship: YAML files beside this one. A registered suite is the path of such a file."""

from pathlib import Path

QUICK = Path(__file__).with_name("quick.yaml")
SMOKE = Path(__file__).with_name("smoke.yaml")
ADVERSARIAL = Path(__file__).with_name("adversarial.yaml")
