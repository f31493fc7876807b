"""The lab's guests: their image, QEMU's command line and process, and the parser of their console output."""
