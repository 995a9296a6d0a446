"""What do the models of a database say about a question of the papers? Studies that write their own conclusions."""
