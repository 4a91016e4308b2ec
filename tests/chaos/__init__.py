"""The stress harness: damaged inputs, kills, full disks, I/O errors and raw HTTP; see docs/reliability.md."""
