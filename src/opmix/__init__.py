"""opmix: in what proportions should you mix your data for the next stretch of training?"""
