"""Ray: the same plan executed by Ray Data, the same loop run by Ray Train. Only this package imports ray."""
