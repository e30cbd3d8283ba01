"""The page of one nodule: facts as plain data, and what draws them."""
