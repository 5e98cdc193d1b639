"""Reproduction of Tables 2 to 4: training their rows, and reports beside the paper's errors."""
