"""Installs bubblewrap where apt is at hand and the user may; what `make install` calls. It never fails the installation.

    python -m nemo_cascade.sandbox.install
"""

import os
import shutil
import subprocess

BY_HAND = "install it by hand (apt-get install bubblewrap, dnf install bubblewrap), or use sandbox.url (docs/sandbox.md)"


def main() -> None:
    """Says what it did in one line."""
    if shutil.which("bwrap"):
        return
    if shutil.which("apt-get") is None:
        print(f"bubblewrap, which code rewards need, is not installed, and there is no apt here: {BY_HAND}")
        return
    # -n: a password cannot be asked for here.
    before = [] if os.geteuid() == 0 else ["sudo", "-n"] if shutil.which("sudo") else None
    if before is None:
        print(f"bubblewrap, which code rewards need, is not installed, and only root may: {BY_HAND}")
        return
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    install = [*before, "apt-get", "-qq", "install", "-y", "--no-install-recommends", "bubblewrap"]
    for command in (install, [*before, "apt-get", "-qq", "update"], install):
        # Lists of packages may be missing or old; only then are they fetched.
        done = subprocess.run(command, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if shutil.which("bwrap"):
            print("bubblewrap was installed, which isolates model-written code")
            return
    print(f"bubblewrap, which code rewards need, could not be installed ({done.stderr.strip()[-200:]}): {BY_HAND}")


if __name__ == "__main__":
    main()
