// Copies a field, and selects it whole when it is clicked.
document.querySelectorAll("[data-select]").forEach((field) => field.addEventListener("focus", () => field.select()));
document.querySelectorAll("[data-copy]").forEach((button) => {
  if (!navigator.clipboard) return;
  button.hidden = false;
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(document.getElementById(button.dataset.copy).value);
    button.querySelector("span").textContent = "Copied";
  });
});
