"""What plugins offer, and the manager that finds and checks them."""
