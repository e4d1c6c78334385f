"""What a trained network can do: tasks, and who asks them."""
