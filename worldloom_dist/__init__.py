"""The distributed system: command lines here, the roles of a run and their parts below."""
