"""How few labelled scans do you need, and does pre-training lower that number?

The folders at the top of the repository are installed below this name: `fewscan.harness`,
`fewscan.experiments`, `fewscan.storage`, `fewscan.slurm`. This file makes it a regular package,
which Python prefers to a mere folder called `fewscan` on its path, such as a clone's.
"""
