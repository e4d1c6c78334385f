"""`mm benchmark`: what a memory mosaic costs beside what it is compared with, timed in turns in one process."""
