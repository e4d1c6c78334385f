amend! Warnings of classes that no run uses are no longer silenced; steps of a universal checkpoint are read in one line

Warnings of classes that no run uses are no longer silenced; kinds of states of a universal checkpoint are read alike
