"""The main job on real text that the machine already has: small, honest, minutes on a CPU."""

from opmix.demo.run import DemoResult, run_demo

__all__ = ["DemoResult", "run_demo"]
