"""Operations from file to file: the only place where checkpoint and algebra meet."""
