"""What each row of the batch keeps, and which row a query gets."""
