# cmake -DINPUT=page.html -DOUTPUT=page.cc -P embed.cmake: the page as a string literal (src/cli/report_template.h).
file(READ "${INPUT}" page)
file(WRITE "${OUTPUT}" "#include \"cli/report_template.h\"\n\nnamespace fovea::cli {\nconst std::string_view kReportTemplate = R\"fovea_page(${page})fovea_page\";\n}\n")
