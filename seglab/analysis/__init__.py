"""Tables, statistics, figures and reports of finished runs."""
