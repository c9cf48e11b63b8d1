//! **Word.** names, being built
