"""The lab's guest: its image, its QEMU command line, its process and what it prints on its console."""
