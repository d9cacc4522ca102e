"""Imported by LeRobot's commands: see specpolicy.interop.lerobot_plugin."""

from specpolicy.interop.lerobot_plugin import install

install()
