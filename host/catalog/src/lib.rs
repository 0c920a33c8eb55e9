//! Model references: what they name, where the files are, how they get here.
