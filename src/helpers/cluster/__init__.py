"""Large studies: memory and hours on each kind of GPU, and who takes which GPU."""
