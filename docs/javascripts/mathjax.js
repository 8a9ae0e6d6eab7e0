// Formulas of explanation/theory.md: arithmatex wraps them in \[ ... \]
window.MathJax = {
  tex: { displayMath: [["\\[", "\\]"]], tags: "ams" },
  options: { ignoreHtmlClass: ".*|", processHtmlClass: "arithmatex" },
};
