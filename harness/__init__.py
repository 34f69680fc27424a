"""What a person runs: study file → plan → schedule → track → report, and the command line."""
