// The search finds what is written for readers first: pages, then notebooks, then the API.
var Scorer = {
  score: ([docname, title, anchor, descr, score]) => {
    if (/^(book\/api|genindex|py-modindex)/.test(docname)) return score - 100;
    return docname.startsWith("book/") ? score + 10 : score;
  },
  objNameMatch: 11,
  objPartialMatch: 6,
  objPrio: { 0: 15, 1: 5, 2: -5 },
  objPrioDefault: 0,
  title: 15,
  partialTitle: 7,
  term: 5,
  partialTerm: 2,
};
