"""What is wrong: with this machine, with a store, and with what lies in it."""
