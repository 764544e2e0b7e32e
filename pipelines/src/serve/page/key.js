// The API key: asked for when the server wants one, and kept for the tab.

import { byId, openDialog, tell } from "./dom.js";

const NAME = "tweedie-key";
let asked = null;

export function currentKey() {
  return sessionStorage.getItem(NAME);
}

/** Whether there is another key than the one that was refused. Requests that fail together ask once. */
export async function askForKey(refused) {
  if (currentKey() !== refused) return true;
  asked ??= ask(refused !== null).finally(() => {
    asked = null;
  });
  return asked;
}

async function ask(wasWrong) {
  const [dialog, input] = [byId("key"), byId("key-value")];
  input.value = "";
  tell(byId("key-error"), wasWrong ? "The server does not know this key." : "");
  byId("key-form").onsubmit = (event) => {
    event.preventDefault();
    sessionStorage.setItem(NAME, input.value.trim());
    dialog.close("given");
  };
  return (await openDialog(dialog)) === "given";
}
