// What the library leaves out when the websocket is gone: that a screen reader says so, and that a page whose session
// ended meanwhile goes to the sign-in. Without a session the server refuses the websocket, so nothing else would tell.
const LOOK_MS = 3000;

addEventListener("DOMContentLoaded", () => {
  const popup = document.getElementById("popup");
  popup.setAttribute("role", "alert");
  setInterval(async () => {
    if (popup.ariaHidden !== "false") return;
    const answer = await fetch("/signed-in", { redirect: "manual", cache: "no-store" }).catch(() => null);
    if (answer?.type === "opaqueredirect") location.reload();
  }, LOOK_MS);
});
