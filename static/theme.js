// Runs before the first paint, so that a chosen theme never flashes the other one.
// Without a choice the page follows the system.
try {
	const chosen = localStorage.getItem("sluicegate.theme");
	if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
} catch {
	// Storage may be forbidden; the system's theme is then the only one.
}
