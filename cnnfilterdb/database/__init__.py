"""What an open database offers: its questions (reader), what changes it (filterdb, imports), and two examples."""
