"""`mm benchmark`: what runs here beside what it is compared with, in turns, as a table and as JSON."""
