"""From the results of a study's runs to what can be said: statistics, figures, tables, the page."""
