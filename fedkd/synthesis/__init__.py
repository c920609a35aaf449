"""Private pictures to synthetic ones that may leave the device: D_n to D'_n."""
