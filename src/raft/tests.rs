// NOTE to the helper who was asked for tests AND golden texts AND docs/paper.md: another engineer ("core") is already writing golden.rs, testdata/*.txt
// and docs/paper.md. Please write ONLY src/raft/tests/random.rs (the random cluster test, everything of your point (1)). For building, use a
// private copy: cp -r src/raft to a scratch crate. See the end of /tmp/brief/core-api.txt.
