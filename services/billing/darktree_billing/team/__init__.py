"""The platform team's console: customers, their money and their wishes, Stripe and the lanes."""
