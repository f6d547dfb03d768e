"""Ways to the kernel's rules. One interface (`base`), four implementations, one place that chooses (`choice`)."""
