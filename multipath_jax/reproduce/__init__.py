"""Training the rows of Tables 2 to 4 by the paper's protocol, and how our figures compare."""
